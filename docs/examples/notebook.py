# %%
import score.distlock

locks = score.distlock.connect(maxtime="5m")

# %%
# A cell with a block shows nothing of the lock, and leaves nothing held.
with locks.get("dataset").hold(autoextend=True) as lock:
    print("mine, with number", lock.fence)

# %%
# A hold for several cells. It ends five minutes after the last extension, also if the kernel dies.
token = locks.acquire("dataset")
token  # shows <token of a hold>

# %%
locks.extend("dataset", token)

# %%
locks.release("dataset", token)
