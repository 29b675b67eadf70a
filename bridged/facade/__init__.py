"""The core: what the networks say becomes one history, and what people want said is decided and sent.

`run_facade` serves one tenant over `core.db`, of which it is the only owner.  The rooms, each using only those
below it:

member                                    opens the store, serves
passing                                   typing and receipts
inbound · outbound · answers              records of the networks, wishes of clients, questions
arrivals, reports · wishes                what each does to the store
asking · settling · publishing            who asks, how far all is applied, the outbox on its way
core                                      one transaction at work: a `Turn`
verdicts · warrants                       what the policy says, whose word it is
intents · events · gaps                   what is said, as payloads (pure)
names · messages · deliveries · directory · progress · tables       the store
"""

from bridged.facade.directory import ClientSeed, Conversation, Link
from bridged.facade.member import GRANTS, FacadeSettings, run_facade
from bridged.facade.tables import MIGRATIONS

__all__ = ["GRANTS", "MIGRATIONS", "ClientSeed", "Conversation", "FacadeSettings", "Link", "run_facade"]
