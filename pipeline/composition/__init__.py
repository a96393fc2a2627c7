"""Stage 1, second half: a dual encoder's image and text rows become query and target rows (f_qry, f_tar)."""
