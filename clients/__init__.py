"""A site: its teacher, its labelled images, its policy, and the gateway that answers for them."""
