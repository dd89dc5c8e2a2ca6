"""The shop: an example application, to be replaced by your own."""
