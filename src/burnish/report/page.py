def render(facts):
    return "<html></html>"
