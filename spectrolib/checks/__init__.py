"""Are the chains in order, how reliable is a number, how certain a share; and does it predict."""
