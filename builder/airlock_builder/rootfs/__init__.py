"""Root filesystems: fetching packages and installing them."""
