"""Where market data comes from: one `MarketFeed` each for replayed history and, later, live vendors."""
