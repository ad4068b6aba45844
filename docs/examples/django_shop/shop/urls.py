from django.http import HttpRequest, JsonResponse
from django.urls import path

from score.distlock import CouldNotAcquireLock

from .shipping import ship


def ship_order(request: HttpRequest, number: int) -> JsonResponse:
    try:
        return JsonResponse({"shipped": ship(number)})
    except CouldNotAcquireLock as error:
        return JsonResponse({"detail": str(error)}, status=409, headers={"Retry-After": "1"})


urlpatterns = [path("orders/<int:number>/ship", ship_order)]
