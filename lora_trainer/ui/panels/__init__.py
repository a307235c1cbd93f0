"""The tab's panels."""
