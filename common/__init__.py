"""What coordinator and sites agree on."""
