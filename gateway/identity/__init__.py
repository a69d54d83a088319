"""Who may say which tenant a request is for: keys, and the tokens that they verify. Used by both planes.

The library for cryptography is loaded when the first token is configured, and never without one.
"""
