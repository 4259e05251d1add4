"""Who is who: keys, certificates and signatures, each kind of key with a module of its own."""
