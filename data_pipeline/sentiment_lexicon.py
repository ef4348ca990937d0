"""The words and phrases of financial news and tweets that carry a direction, with weights from -1 (bad) to 1 (good).

Chosen by hand for how a share tends to be talked about, not fitted to any data set, so that nothing measured on history
has leaked in. `data_pipeline.sentiment` reads it once; the order of the entries means nothing.
"""

from __future__ import annotations

_WORDS: dict[float, str] = {
    0.9: "skyrocket skyrockets skyrocketed skyrocketing soar soars soared soaring blockbuster stellar outstanding",
    0.8: (
        "surge surges surged surging upgrade upgrades upgraded outperform outperforms outperformed bullish breakthrough "
        "rocket rockets rocketed exceptional triumph boom booming excellent moon mooning"
    ),
    0.7: (
        "rally rallies rallied rallying beat beats beating jump jumps jumped jumping rebound rebounds rebounded bull bulls "
        "breakout record upside thrive thrives thriving profitable buyback buybacks accretive windfall jackpot leap leaps"
    ),
    0.6: (
        "gain gains gained gaining strong stronger strongest growth grow grows growing grew exceed exceeds exceeded "
        "exceeding win wins winner winners won winning success successful approval approved approves overweight undervalued "
        "accumulate accumulating impressive raise raises raised boost boosts boosted boosting accelerate accelerates "
        "accelerated accelerating expand expands expanded expanding great amazing awesome momentum climb climbs climbed "
        "climbing advance advances advanced lucrative"
    ),
    0.5: (
        "rise rises rose rising improve improves improved improving improvement profit profits recover recovers recovered "
        "recovery recovering optimistic optimism positive attractive favorable favourable confident confidence strength "
        "green uptrend opportunity opportunities top tops topped topping higher buy buys buying bought bottomed robust "
        "healthy solid resilient love loves lead leads leading leader leadership innovative patent partnership dividend "
        "outpace outpaced reward rewarding best perfect happy"
    ),
    0.4: (
        "good better nice launch launches launched expansion deal contract award awarded support supported supports long "
        "calls stable stabilize stabilized upbeat uptick pop pops popped popular demand agreement settle settled "
        "likes cheap bargain ahead"
    ),
    0.3: "up high highs increase increases increased increasing above add adds added adding steady hopeful interesting",
    -0.3: "down low lows decrease decreases decreased decreasing below uncertain uncertainty cautious caution mixed delayed",
    -0.4: (
        "delay delays volatile concern concerns concerned expensive sluggish soft slip slips slipped slipping pressure "
        "pressured dip dips dipped dipping lower puts short shorts shorted shorting challenge challenges challenging "
        "question questions debt dilution dilutive tariff tariffs costly weigh weighs weighed worry worries worried"
    ),
    -0.5: (
        "fall falls fell falling decline declines declined declining drop drops dropped dropping lose loses losing lost "
        "weak weaker weakest weakness weaken weakens weakened negative bad worse red risk risks risky sell sells selling "
        "sold slow slows slowed slowing slowdown overvalued overbought pessimistic fear fears afraid problem problems "
        "trouble troubled cut cuts cutting downtrend underweight struggle struggles struggling resign resigns resigned "
        "resignation disruption shortage penalty hate hates reject rejects rejected wrong issue issues pullback"
    ),
    -0.6: (
        "loss losses miss misses missed missing lawsuit lawsuits sue sues sued suing investigation investigations probe "
        "probes probed recall recalls recalled warn warns warned warning warnings layoff layoffs fine fined bearish bear "
        "bears disappoint disappoints disappointed disappointing disappointment underperform underperforms underperformed "
        "fail fails failed failing failure breach hack hacked violation violations impairment writedown writeoff terrible "
        "ugly breakdown subpoena antitrust restructuring screwed selloff unprofitable downside damage damages"
    ),
    -0.7: (
        "downgrade downgrades downgraded slump slumps slumped slumping tumble tumbles tumbled tumbling slide slides slid "
        "sliding sink sinks sank sinking recession crisis scandal horrible worst awful tank tanks tanked tanking dump dumps "
        "dumped dumping halt halted default defaults defaulted suspend suspends suspended delisted delisting manipulation "
        "insolvent insolvency corruption bribery indicted indictment"
    ),
    -0.8: "plunge plunges plunged plunging plummet plummets plummeted plummeting crash crashes crashed crashing disaster scam",
    -0.9: "collapse collapses collapsed collapsing bankrupt bankruptcy fraud fraudulent worthless catastrophe meltdown ponzi",
}

_PHRASES: dict[float, tuple[str, ...]] = {
    0.9: ("all time high", "all time highs", "record high", "record highs", "record profit", "record earnings"),
    0.8: (
        "beats estimates", "beat estimates", "beats expectations", "beat expectations", "better than expected",
        "tops estimates", "tops expectations", "above estimates", "above expectations", "raises guidance",
        "raised guidance", "raises outlook", "raised outlook", "record revenue", "record sales", "strong buy",
        "blows past", "higher than expected", "to the moon", "blow out", "52 week high", "new high", "new highs",
    ),
    0.7: (
        "price target raised", "raises price target", "raised price target", "raises target", "ups target",
        "raises dividend", "dividend increase", "hikes dividend", "share repurchase", "stock buyback", "wins contract",
        "fda approval", "breaking out", "break out", "higher highs", "golden cross", "short squeeze", "shorts covering",
        "strong demand", "strong earnings", "strong quarter", "initiated at buy", "rated buy", "raises stake",
    ),
    0.5: ("going up", "moving up", "heading higher", "on track", "special dividend", "stock split", "bounce back", "big win"),
    0.0: (
        "long term", "short term", "earnings call", "conference call", "high frequency", "top stocks", "top 10", "top 5",
        "follow up", "sign up", "set up", "wrap up", "heads up", "start up", "low cost", "cost cutting", "price target",
        "stop loss", "profit and loss", "risk management", "bull and bear", "best buy", "call options", "put options",
        "would like", "look like", "looks like", "feel like", "things like", "stocks like", "lead to", "led to",
        "record date", "join now", "add to watchlist", "breaking down the numbers", "open interest", "interest rate",
        "made up", "check up", "up to", "like this", "like a", "fear and greed", "gains tax", "top of",
    ),
    -0.5: ("going down", "moving down", "heading lower", "profit taking", "under pressure", "supply chain", "sell the news"),
    -0.7: (
        "price target cut", "cuts price target", "cut price target", "lowers price target", "cuts target",
        "lowers target", "cuts dividend", "dividend cut", "class action", "lower lows", "death cross", "breaking down",
        "break down", "weak demand", "weak earnings", "weak quarter", "rated sell", "job cuts", "cuts jobs",
        "data breach", "short seller", "slashes price", "steps down", "stepping down", "52 week low", "new low", "new lows",
    ),
    -0.8: (
        "misses estimates", "missed estimates", "misses expectations", "missed expectations", "worse than expected",
        "below estimates", "below expectations", "cuts guidance", "cut guidance", "lowers guidance", "lowered guidance",
        "cuts outlook", "lowers outlook", "profit warning", "going concern", "strong sell", "sell off", "lower than expected",
        "accounting irregularities", "sec investigation", "falls short", "fell short", "dead money",
    ),
    -0.9: ("chapter 11", "files for bankruptcy", "filed for bankruptcy", "goes bankrupt", "margin call", "free fall"),
}  # fmt: skip

_NEGATORS = (
    "not no never none nobody nothing neither nor without cannot cant can't n't dont don't doesnt doesn't didnt didn't "
    "isnt isn't wasnt wasn't arent aren't werent weren't wont won't wouldnt wouldn't shouldnt shouldn't couldnt couldn't "
    "hasnt hasn't havent haven't hadnt hadn't aint ain't hardly barely scarcely lack lacks lacking despite avoid avoids "
    "avoided"
)
_AMPLIFIERS = (
    "very really extremely hugely massively sharply strongly significantly dramatically big huge massive major so super "
    "insanely incredibly substantially heavily totally absolutely much biggest"
)
_DAMPENERS = "slightly somewhat little modestly marginally fairly mildly partly bit small minor maybe"

NEGATORS = frozenset(_NEGATORS.split())
"""Turn the direction of what follows within three words."""

INTENSIFIERS: dict[str, float] = {
    **dict.fromkeys(_AMPLIFIERS.split(), 1.5),
    **dict.fromkeys(_DAMPENERS.split(), 0.5),
}
"""Scale the word right behind them."""

WORD_WEIGHTS: dict[str, float] = {word: weight for weight, words in _WORDS.items() for word in words.split()}
PHRASE_WEIGHTS: dict[tuple[str, ...], float] = {
    tuple(phrase.split()): weight for weight, phrases in _PHRASES.items() for phrase in phrases
}
