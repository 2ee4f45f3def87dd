"""Work that is often asked of an agent, as a short prompt each and checks that are none of the model's."""
