class TotalTQDM:
    """The console's bar over all pictures; here it only knows its length."""

    total = 0

    def updateTotal(self, new_total):
        self.total = new_total

    def clear(self):
        self.total = 0
