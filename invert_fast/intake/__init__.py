"""What people have, made into texts of states; and prompts, made into ids as the model's own use makes them."""
