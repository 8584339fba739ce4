"""How the corpus is made: random programs, their rejection, and the rows written from them."""
