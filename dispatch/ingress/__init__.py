"""The ingress: feed, admission, claim, enqueue, reconcile."""
