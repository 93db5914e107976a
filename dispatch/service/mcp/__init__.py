"""The Task Tools over the Model Context Protocol: streamable HTTP and stdio."""
