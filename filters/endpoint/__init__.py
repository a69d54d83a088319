"""What produces the answer: an application, a redirect, or the gateway itself."""
