"""What every part uses, and what knows none of them."""
