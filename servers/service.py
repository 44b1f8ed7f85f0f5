"""What every window calls: the MCP server, the OpenAI endpoint and the command line are thin skins over this.

No transport, no protocol. A :class:`Service` joins the ledger (truth), the scope and router (what goes in) and the model
(what answers). Whatever can fail in routing falls back to the base model and says so; whatever can fail in writing raises
before anything is acknowledged.
"""
