"""Networks, one a file. Denoisers' networks (rows of `table.NETWORKS`) take (x, c_noise, class_labels) and return x."""
