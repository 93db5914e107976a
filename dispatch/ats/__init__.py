"""The ATS wire protocol as a client speaks it: requests, answers, events."""
