"""What your deployment chose. Everything else has its default in group_data/all.py."""

# What stands after the colon in @user:example.org. It can never be changed afterwards.
server_name = "example.org"

# Certificate authorities write to this address when something is wrong.
admin_email = "admin@example.org"

# Files of other homeservers that nobody here has used for so many days are removed, and fetched again when somebody wants them,
# if that homeserver still has them. None: they are all kept.
remote_media_days = 90

# Who is told in a private room what people report, instead of all server administrators, and what the monitoring finds: accounts,
# once you have made them.
# reports_to = ["@anna:example.org"]
# alerts_to = ["@anna:example.org"]
