"""Reports for people: self-contained pages of figures that were computed elsewhere."""
