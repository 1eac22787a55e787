"""The seams: the places in torch where attention passes, one file each."""
