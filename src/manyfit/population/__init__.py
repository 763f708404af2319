"""K networks of one shape as one: products, masks and updates that give a member the same bits in any company."""
