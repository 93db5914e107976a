def preflight(settings, *, executor):
    from dispatch.ats.client import Client
    from dispatch.ats import protocol, choose
    from dispatch.ats.model import Actor
    return choose.extensions_of_health(Client(protocol.endpoint(settings.ats.url), Actor('agent','x','x')).send(protocol.health()))
