"""What files of a corpus are read as: one module per format, and the table of all of them."""
