class Serving:
    def __init__(self, channel, directory): pass
    async def run(self): pass
