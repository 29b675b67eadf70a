"""Fake platforms on their true wire protocols, with faults on command.

They ship: the demo, the dev stack, the tests and third parties use them.  They import no connector and share
no parser with one, since a shared mistake would hide; what real servers were seen to answer is their
specification (`docs/connectors/`).
"""
