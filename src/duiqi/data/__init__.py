"""Data: any format becomes an `Example`, and any example becomes token ids that know which of them are the answer."""
