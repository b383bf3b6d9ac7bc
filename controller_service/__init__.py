"""The controller: registry, router and relay of engines. It never unpickles."""
