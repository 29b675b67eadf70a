"""The core: what the networks say becomes one history, and what people want said is decided and sent.

`run_facade` serves one tenant over `core.db`, of which it is the only owner.  The rooms, downwards: `member` ·
`passing` `answers` `outbound` `inbound` (Trio) · `arrivals` `core` (one transaction at work) · `messages`
`deliveries` `directory` `progress` (the store) · `intents` `events` `verdicts` `gaps` `tables` (pure).
"""

from bridged.facade.directory import ClientSeed, Conversation, Link
from bridged.facade.member import GRANTS, FacadeSettings, run_facade
from bridged.facade.tables import MIGRATIONS

__all__ = ["GRANTS", "MIGRATIONS", "ClientSeed", "Conversation", "FacadeSettings", "Link", "run_facade"]
