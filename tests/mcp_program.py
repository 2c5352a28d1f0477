"""A real MCP server, over standard input and output."""

from mcp.server.fastmcp import FastMCP

server = FastMCP("weather", log_level="ERROR")


@server.tool()
def temperature(city: str, unit: str = "C") -> float:
    """The temperature in a city."""
    if city == "Atlantis":
        raise ValueError("no such city")
    return 21.5 if unit == "C" else 70.7


@server.tool()
def report(city: str) -> dict[str, str]:
    """The weather in a city."""
    return {"city": city, "sky": "clear"}


if __name__ == "__main__":
    server.run()
