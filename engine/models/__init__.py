"""Networks: proxies, students, frozen backbones."""
