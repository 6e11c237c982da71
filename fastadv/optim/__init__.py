"""Adam over the weights, decided on the host or on the device."""
