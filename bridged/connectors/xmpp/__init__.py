"""XMPP: one account, its rooms (MUC) and its one-to-one chats."""
