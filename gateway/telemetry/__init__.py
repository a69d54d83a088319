"""What an operator reads: metrics and the access log. It takes values and makes bytes; it decides nothing."""
