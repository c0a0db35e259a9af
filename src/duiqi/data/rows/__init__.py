"""How the rows of each format become examples; `duiqi.data.formats` is the table of them."""
