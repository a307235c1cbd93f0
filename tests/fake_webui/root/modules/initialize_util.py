def setup_middleware(app):
    """What the page's app gets of its own when the WebUI listens already (initialize_util.py:192)."""
    from starlette.middleware.gzip import GZipMiddleware

    app.middleware_stack = None
    app.add_middleware(GZipMiddleware, minimum_size=1000)
    app.build_middleware_stack()
