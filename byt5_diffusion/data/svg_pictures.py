"""x"""
def prepare(): return []
def draw(source, *, name, **k): raise NotImplementedError
