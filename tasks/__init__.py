"""SeqIO registrations, one file per family of data sets; gin names them."""
