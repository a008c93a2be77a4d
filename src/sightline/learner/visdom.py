"""Curves and images on a Visdom server."""
# ruff: noqa: N803 the published names, in which X holds the values and Y where they are

from typing import Any, TypeAlias

from sightline.core import locate

Text: TypeAlias = str | None


class VisdomLogger:
    """Hands each call to Visdom's; `win` is the window, `title` its title, further arguments are Visdom's. Raises
    MissingExtraError without the package visdom."""

    def __init__(self, server: str = "http://localhost", endpoint: str = "events", port: int = 8097, **options: Any):
        self.env = options.setdefault("env", "main")
        self.viz = locate.import_optional("visdom").Visdom(server=server, endpoint=endpoint, port=port, **options)

    def log_text(self, text: str, win: str, title: Text = None, env: Text = None, opts: Any = None) -> None:
        """Adds a text to a window, which is made when it is not there."""
        self.viz.text(text, win, env=env, opts=_titled(title, opts), append=bool(self.viz.win_exists(win, env)))

    def log_image(self, image: Any, win: str, title: Text = None, env: Text = None, opts: Any = None) -> None:
        """An image [C,H,W]."""
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
        """Images [N,C,H,W], `ncol` in a row."""
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
        """A curve: the values `X` over `Y`."""
        self.viz.line(Y=X, X=Y, win=win, env=env, opts=_titled(title, opts), update=update_mode, name=name)

    def plot_bar(self, X: Any, Y: Any, win: str, title: Text = None, env: Text = None, opts: Any = None) -> None:
        """Bars of heights `X` with the names `Y`."""
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
        """Arrows."""
        self.viz.quiver(X=X, Y=Y, gridX=gridX, gridY=gridY, win=win, env=env, opts=_titled(title, opts))

    def plot_pie(self, X: Any, win: str, title: Text = None, env: Text = None, opts: Any = None) -> None:
        """Shares of a total."""
        self.viz.pie(X=X, win=win, env=env, opts=_titled(title, opts))

    def plot_histogram(self, X: Any, win: str, title: Text = None, env: Text = None, opts: Any = None) -> None:
        """How often values occur."""
        self.viz.histogram(X=X, win=win, env=env, opts=_titled(title, opts))

    def plot_boxplot(self, X: Any, win: str, title: Text = None, env: Text = None, opts: Any = None) -> None:
        """Quartiles."""
        self.viz.boxplot(X=X, win=win, env=env, opts=_titled(title, opts))

    def save(self, env: str = "main") -> None:
        """Lets the server write an environment to its disk."""
        self.viz.save([env])


def _titled(title: Text, opts: Any) -> Any:
    return {"title": title} if opts is None else opts
