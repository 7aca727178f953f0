"""What your deployment chose. Everything else has its default in group_data/all.py."""

# What stands after the colon in @user:example.org. It can never be changed afterwards.
server_name = "example.org"

# Certificate authorities write to this address when something is wrong.
admin_email = "admin@example.org"
