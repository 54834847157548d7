"""Where a network's weights come from: files, adapters, a supernet."""
