"""The landscape: dated, sourced facts about models, licences, formats, runtimes and prices, and arithmetic on them.

The tables lie in data/landscape, apart because they age apart: a price holds a month, a licence half a year, a
published dimension for ever. A blank field means that nobody has checked; it is shown as "verify" and never guessed.
"""
