"""Mathematics: stateless functions of tensors, without files, devices or global random state."""
