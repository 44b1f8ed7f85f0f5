"""The windows: MCP, the OpenAI API, the command line's service; the engines and processes behind them."""
