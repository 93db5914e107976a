"""One attempt on one host: process tree, output, lease keeper, warden."""
