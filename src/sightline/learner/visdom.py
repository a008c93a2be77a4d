"""A logger that sends text, images and plots to a Visdom server."""
# ruff: noqa: N803 the published names, in which X are the values and Y their positions

from typing import Any, TypeAlias

from sightline.core import locate

Text: TypeAlias = str | None


class VisdomLogger:
    """Logs to a Visdom server.

    In all methods, `win` is the window's id and `title` its title; `env` and `opts` are those of Visdom, and `opts`
    replaces `title`. `options` are passed to `visdom.Visdom`. Raises MissingExtraError if visdom is not installed."""

    def __init__(self, server: str = "http://localhost", endpoint: str = "events", port: int = 8097, **options: Any):
        self.env = options.setdefault("env", "main")
        self.viz = locate.import_optional("visdom").Visdom(server=server, endpoint=endpoint, port=port, **options)

    def log_text(self, text: str, win: str, title: Text = None, env: Text = None, opts: Any = None) -> None:
        """Appends text to a window, which is created if it does not exist."""
        self.viz.text(text, win, env=env, opts=_titled(title, opts), append=bool(self.viz.win_exists(win, env)))

    def log_image(self, image: Any, win: str, title: Text = None, env: Text = None, opts: Any = None) -> None:
        """Shows an image [C, H, W]."""
        self.viz.image(image, win, env=env, opts=_titled(title, opts))

    def log_images(
        self,
        image: Any,
        win: str,
        title: Text = None,
        env: Text = None,
        opts: Any = None,
        ncol: int = 8,
        padding: int = 2,
    ) -> None:
        """Shows images [N, C, H, W], with `ncol` per row."""
        self.viz.images(image, win=win, env=env, opts=_titled(title, opts), nrow=ncol, padding=padding)

    def plot_line(
        self,
        X: Any,
        Y: Any,
        win: str,
        title: Text = None,
        env: Text = None,
        opts: Any = None,
        update_mode: Text = None,
        name: Text = None,
    ) -> None:
        """Plots a line with the values `X` at the positions `Y`."""
        self.viz.line(Y=X, X=Y, win=win, env=env, opts=_titled(title, opts), update=update_mode, name=name)

    def plot_bar(self, X: Any, Y: Any, win: str, title: Text = None, env: Text = None, opts: Any = None) -> None:
        """Plots bars of heights `X`, labelled `Y`."""
        self.viz.bar(X=X, Y=Y, win=win, env=env, opts=_titled(title, opts))

    def plot_quiver(
        self,
        X: Any,
        Y: Any,
        win: str,
        title: Text = None,
        gridX: Any = None,
        gridY: Any = None,
        env: Text = None,
        opts: Any = None,
    ) -> None:
        """Plots a vector field (`X`, `Y`) at the positions (`gridX`, `gridY`)."""
        self.viz.quiver(X=X, Y=Y, gridX=gridX, gridY=gridY, win=win, env=env, opts=_titled(title, opts))

    def plot_pie(self, X: Any, win: str, title: Text = None, env: Text = None, opts: Any = None) -> None:
        """Plots a pie chart of `X`."""
        self.viz.pie(X=X, win=win, env=env, opts=_titled(title, opts))

    def plot_histogram(self, X: Any, win: str, title: Text = None, env: Text = None, opts: Any = None) -> None:
        """Plots a histogram of `X`."""
        self.viz.histogram(X=X, win=win, env=env, opts=_titled(title, opts))

    def plot_boxplot(self, X: Any, win: str, title: Text = None, env: Text = None, opts: Any = None) -> None:
        """Plots a box plot of `X`."""
        self.viz.boxplot(X=X, win=win, env=env, opts=_titled(title, opts))

    def save(self, env: str = "main") -> None:
        """Makes the server save an environment to its disk."""
        self.viz.save([env])


def _titled(title: Text, opts: Any) -> Any:
    return {"title": title} if opts is None else opts
