"""A shopping list: prices in cents, counts by item."""


def total_price(prices: list[int]) -> int:
    """Return the sum of the numbers."""


def expensive_items(prices: dict[str, int], limit: int) -> list[str]:
    """Keep the entries whose value is greater than `limit`, then return the keys as a list."""
    prices = {key: value for key, value in prices.items() if value > limit}
    return list(prices)


def cheapest(prices: list[int], count: int) -> list[int]:
    """Sort the numbers in ascending order, then return the first `count` numbers."""
    prices = sorted(prices)
    return prices[:count]
